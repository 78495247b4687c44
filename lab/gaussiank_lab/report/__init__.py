"""What a run has written: records, their summary, figures and pages. Needs no torch."""
