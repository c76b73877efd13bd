"""What this program uses of DeepSpeed beyond its documented interface, all in this package.

`names.PRIVATE` lists each name with its reason, and with what happens where the installed DeepSpeed
is not of the version that was tested. No module outside touches a name of the list, or an
underscore attribute of an object that is not its own; a test holds that.
"""
