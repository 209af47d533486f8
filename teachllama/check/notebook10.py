"""The checks of notebook 10; they live in `teachllama.lessons.n10_sessions`."""

from teachllama.lessons.n10_sessions.checks import *  # noqa: F403
