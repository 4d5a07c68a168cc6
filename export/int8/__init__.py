"""int8: scales, equalisation, layers kept in float."""
