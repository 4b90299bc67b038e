"""A report as text, JSON, SARIF, JUnit XML or a page. Pure: values in, text out."""
