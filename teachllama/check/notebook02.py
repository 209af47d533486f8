"""The checks of notebook 02; they live in `teachllama.lessons.n02_chat`."""

from teachllama.lessons.n02_chat.checks import *  # noqa: F403
