"""SERVES: accepts, greets, logs, answers and closes; counts; drains."""
