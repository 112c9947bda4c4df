"""What trained trials mean: tables, effects, scaling laws, figures, reports.

Plain functions on one DataFrame of trials. Needs numpy, pandas, scipy, matplotlib and jinja2; never torch.
"""
