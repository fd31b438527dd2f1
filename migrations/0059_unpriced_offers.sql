-- The reason why the price of an offer is unknown now, such as a stale entry of the catalogue: no run starts there until
-- it is known (domain::offer::Offer::no_price). Null: the price is known.
alter table offer add column no_price text;
