"""Where bytes come from: folders, tables, archives, TFDS, arrays and what the package brings."""
