"""The services of Greenroom on one machine, against emulators."""
