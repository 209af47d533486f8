"""Grading: a student's functions run in a separate process; another one, which they can't access, judges the results.

`collect` finds the submissions, `student` is the process that runs a student's code, `remote` calls functions in it,
`one` grades one notebook, and `batch` grades a class. The command is `teachllama grade`.
"""
