"""`python -m hub_deidentification` is `hub-deidentification`."""

from hub_deidentification.service import main

main()
