"""The training lab: data, models, the command line, records and reports."""
