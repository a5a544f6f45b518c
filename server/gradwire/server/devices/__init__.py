"""Devices own flat vectors and run scalar update functions over them."""
