"""The report of a run, for people (report.html, report.png) and for programs (report.json)."""
