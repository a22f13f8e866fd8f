"""`python -m hub_console` is `hub`."""

from hub_console.main import main

main()
