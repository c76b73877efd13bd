"""The functions of `import diablo_ds`."""
