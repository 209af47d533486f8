"""What every check is made of; it lives in `teachllama.lessons.common`."""

from teachllama.lessons.common.check import *  # noqa: F403
