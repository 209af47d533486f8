"""The checks of notebook 04; they live in `teachllama.lessons.n04_sessions`."""

from teachllama.lessons.n04_sessions.checks import *  # noqa: F403
