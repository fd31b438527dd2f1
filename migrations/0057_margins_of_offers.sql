-- The margin of an offer by the peaks of its past runs, in percent of a predicted peak (domain::memory::Margin), written
-- whenever the offer is published. Null: too few runs have ended on its kind of machine, and it has the default margin.
alter table offer add column margin_percent integer
    constraint offer_margin_percent_check check (margin_percent > 0);
