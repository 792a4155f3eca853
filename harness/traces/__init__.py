"""From a file of a profiler to tables: one reader per format, one interface (`trace.Trace`)."""
