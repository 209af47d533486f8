"""What lessons share: style, checks, judging, exercises. Knows nothing of any lesson."""
