"""What a trial reports and what a sweep found: measures, settings over seeds, order, tables and pictures."""
