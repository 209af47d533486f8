"""The pictures of notebook 10; they live in `teachllama.lessons.n10_sessions`."""

from teachllama.lessons.n10_sessions.pictures import *  # noqa: F403
