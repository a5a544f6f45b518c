"""``python -m gradwire.client.doctor``."""

import sys

from gradwire.client.doctor.command import main

if __name__ == "__main__":
    sys.exit(main())
