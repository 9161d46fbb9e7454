"""One run: checks, assembly, execution, folder, logs, dry run, report, analysis."""
