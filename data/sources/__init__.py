"""Where text and rows come from: plays, files in any encoding, rows of tables, data sets of the hub."""
