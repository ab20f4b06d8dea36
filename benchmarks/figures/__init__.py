"""The pictures of the README and of ``docs``, each made by a script."""
