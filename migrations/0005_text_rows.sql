-- Plain texts, for continued pre-training, beside chats and prompt/completion pairs.
alter table file drop constraint file_format_check;
alter table file add constraint file_format_check check (format in ('chat', 'completion', 'text'));
