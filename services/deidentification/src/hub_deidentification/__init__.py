"""Removes what identifies patients, and keeps back what it cannot clean."""
