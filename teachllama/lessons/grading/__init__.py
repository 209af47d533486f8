"""Grading: a student's functions run in a process of their own; one that they cannot touch judges what comes back.

`collect` finds the submissions, `student` is the process that runs a student's code, `remote` calls functions in it,
`one` grades one notebook, and `batch` a class. `teachllama grade` is the command.
"""
