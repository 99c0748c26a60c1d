"""`segdet check-data`: every defect of a data set, by the readers' own rules and beyond them.

`segdet.data.defects` lists what there is to find; docs/check_data.md says how to ask.
"""
