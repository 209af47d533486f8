"""The pictures of notebook 04; they live in `teachllama.lessons.n04_sessions`."""

from teachllama.lessons.n04_sessions.pictures import *  # noqa: F403
