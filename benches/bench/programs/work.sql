-- A stretch of ordinary SQL in memory: bulk insert, index, join, aggregate, update, delete.
create table item (id integer primary key, name text, price integer, tag text);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 200000)
insert into item select i, 'item number ' || i, (i * 7919) % 1000, 'tag' || (i % 97) from n;
create index by_tag on item (tag, price);
create table sale (item integer, amount integer);
insert into sale select (id * 31) % 200000 + 1, id % 13 from item;
select tag, count(*), sum(price * amount) from item join sale on item = id group by tag order by 3 desc limit 10;
update item set name = upper(name) || '!' where id % 3 = 0;
delete from item where price < 100;
select count(*), sum(length(name)), max(name) from item;
select group_concat(name, ';') like '%!;%' from (select name from item order by name limit 20000);
