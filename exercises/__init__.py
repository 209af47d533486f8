"""The exercises, to be released, collected and graded with nbgrader. README.md explains how."""
