"""One page about one run or several: report.html, and its figures as PNGs."""
