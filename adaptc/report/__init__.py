"""What a compile did and what was measured, for people: lines for a terminal, report.json and report.html."""
