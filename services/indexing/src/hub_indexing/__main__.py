"""`python -m hub_indexing` is `hub-indexing`."""

from hub_indexing.service import main

if __name__ == "__main__":
    main()
