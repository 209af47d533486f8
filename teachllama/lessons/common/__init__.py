"""Code shared by the lessons: style, checks, judging, exercises. Independent of any lesson."""
