"""Numbered SQL files, applied once each, in order. A file that was applied somewhere is never edited: add the next number."""
