"""The folder of the project, for tests that run its programs or read its pages."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
