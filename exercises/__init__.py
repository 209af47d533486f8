"""The exercises to hand out, collect and grade with nbgrader; README.md says how."""
