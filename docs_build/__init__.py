"""What the documentation site needs beside the pages of ``docs``: a build hook, styles, generated tables."""
