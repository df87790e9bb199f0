"""The report of `muomni bench`: JSON, HTML, claims and recommendations."""
