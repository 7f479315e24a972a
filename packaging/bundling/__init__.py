"""What `packaging/build.py` is made of. Only `icons` needs Qt and only the spec needs PyInstaller."""
