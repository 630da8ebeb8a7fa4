"""What the benchmarks share: measuring in alternation, records with their circumstances, tables and plots."""
