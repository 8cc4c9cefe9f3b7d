"""Reports: figures as records (for report.json), tables, plots and self-contained HTML pages.

Each report has its records, tables and plots (ranking/, ctr/, drift, comparison); page writes them.
"""
