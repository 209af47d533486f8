"""The parts of every check, defined in `teachllama.lessons.common`."""

from teachllama.lessons.common.check import *  # noqa: F403
