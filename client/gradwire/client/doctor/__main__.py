"""``python -m gradwire.client.doctor``."""

from gradwire.client.doctor.command import main

if __name__ == "__main__":
    main()
