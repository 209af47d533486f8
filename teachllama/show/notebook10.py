"""The pictures of notebook 10, defined in `teachllama.lessons.n10_sessions`."""

from teachllama.lessons.n10_sessions.pictures import *  # noqa: F403
