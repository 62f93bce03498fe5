{% from "escaped.jinja" import escaped -%}
"""{{ escaped(cookiecutter.description) }}"""
