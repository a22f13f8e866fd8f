"""`python -m hub_export` is `hub-export`."""

from hub_export.service import main

if __name__ == "__main__":
    main()
