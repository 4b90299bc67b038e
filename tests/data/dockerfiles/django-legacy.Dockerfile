FROM python:2.7
MAINTAINER Jane Doe <jane@example.com>
ENV DJANGO_SETTINGS_MODULE site.settings
ADD . /code
WORKDIR code
RUN pip install -r requirements.txt
EXPOSE 8000
CMD python manage.py runserver 0.0.0.0:8000
