"""Removes what identifies patients."""
